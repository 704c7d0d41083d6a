"""Bases in 8 and 4 bits, with the libraries that quantise them."""
