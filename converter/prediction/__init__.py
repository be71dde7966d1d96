"""What a start of an image will read, told from the image's files alone: nobody has to run it first.

A start reads little of an image, and most of that follows from what it holds: the command's interpreter, the libraries
that name each other in their dynamic sections, the modules that import each other. `start` follows them from the
command of the image's config and tells the bytes in the order in which the program will want them.

It is a guess: what a program decides while it runs is not in its files. `docs/design/0005-prediction.md` tells how good
it is. Nothing here does I/O; bytes of files come from a function that is handed in.
"""
