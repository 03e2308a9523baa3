"""`python -m jitalloc` is the command line."""

from jitalloc.cli import main

if __name__ == "__main__":
    main(prog_name="jitalloc")
