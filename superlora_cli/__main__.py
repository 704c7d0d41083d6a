"""`python -m superlora_cli` does the same as `superlora`."""

from superlora_cli.cli.app import main

if __name__ == "__main__":
    main()
