"""The version of the program: one line that everything without package metadata (the frozen program too) can read."""

VERSION = "0.1.0"
