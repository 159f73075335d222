"""`python -m infra.stack`: the command line of the stack."""

from infra.stack.cli import main

if __name__ == "__main__":
    main()
