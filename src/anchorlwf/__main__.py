"""`python -m anchorlwf`: the command line, for `torchrun -m anchorlwf`."""

from anchorlwf.cli import main

if __name__ == "__main__":
    main()
