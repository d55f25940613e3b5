"""What `th train.lua` was: python train.py -data_dir data/mine -rnn_size 256"""

import sys

from charrnn.__main__ import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
