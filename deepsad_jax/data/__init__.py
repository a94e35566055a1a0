"""Data: `sources` reads raw arrays, `scenario` makes a semi-supervised problem of
them."""
