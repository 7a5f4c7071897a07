"""The shipped studies: one file per figure, each with one module-level `study`. Found by name, never imported here."""
