"""`python -m plusx` is the same as `plusx`."""

from plusx.cli import main


if __name__ == "__main__":
    main()
