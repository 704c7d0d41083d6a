"""Weight updates as the files of other libraries. Knows `adapter/`, and no command line."""
