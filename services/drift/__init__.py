"""The label-free early warning: what can be seen of a change before any truth arrives. It warns; it never orders."""
