"""Two language models of one vocabulary -> one (JAM, arXiv:2309.15564, section 3.1)."""
