"""From a text file to minibatches of token ids."""
