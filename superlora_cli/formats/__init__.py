"""Weight updates in the file formats of other libraries, one module per format, listed in `known`."""
