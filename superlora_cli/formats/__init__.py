"""Weight updates as the files of other libraries, one file per format, found by the table in `known`."""
