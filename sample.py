"""What `th sample.lua` was: python sample.py cv/lm_lstm_epoch50.00_1.4000.pt -temperature 0.7"""

import sys

from charrnn.__main__ import main

if __name__ == "__main__":
    main(["sample", *sys.argv[1:]])
