"""`python -m simbandit` is the command `simbandit`."""

from simbandit.cli import main

if __name__ == "__main__":
    main()
