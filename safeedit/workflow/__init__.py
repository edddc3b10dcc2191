"""Running notebooks: which are stale, side by side, whole or not at all.

`notebooks` reads sources and says what has to be run and why, `runner` does one run,
`engine` many (in `kernels`, with `locks` and `progress`), `editions` makes what is
published of an executed notebook.
"""
