"""`python -m sam_blvit` is `sam-blvit`."""

from sam_blvit.cli import main

if __name__ == "__main__":
    main()
