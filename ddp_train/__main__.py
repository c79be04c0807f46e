"""`python -m ddp_train`: the trainer, as `python ddp_train/main.py`."""

from ddp_train.main import program

if __name__ == "__main__":
    program()
