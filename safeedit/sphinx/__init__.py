"""The parts of the book's Sphinx extension; `safeedit.sphinxext` registers them."""
