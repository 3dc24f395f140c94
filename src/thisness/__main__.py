"""`python -m thisness`: the command line."""

from thisness.cli import main

if __name__ == "__main__":
    main()
