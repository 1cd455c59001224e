"""The embedded virtual machine monitor: a host, guests of this process, and functions in their hands."""
