"""As the console script: `python -m vitlab train`."""

from vitlab.cli import main

if __name__ == "__main__":
    main()
