"""Documents of virtfn.api as a person reads them, in a terminal; a module of the same name for each."""
