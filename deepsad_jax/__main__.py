"""`python -m deepsad_jax` is the command `deepsad`."""

from deepsad_jax import cli

if __name__ == "__main__":
    cli.main()
