"""Data: `sources` reads raw arrays, `protocol` makes a semi-supervised problem of
them."""
