"""The frozen program starts here and nowhere else; what it does is in sigma_app, which the bundle holds as source."""

from sigma_app.__main__ import start

if __name__ == "__main__":
    start()
