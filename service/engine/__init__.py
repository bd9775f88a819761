"""Between requests and the device: the only asynchronous and threaded code, and it knows no HTTP."""
