"""`python -m ddp_train` runs the trainer, like `python ddp_train/main.py`."""

from ddp_train.main import program

if __name__ == "__main__":
    program()
