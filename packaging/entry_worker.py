"""The frozen worker starts here: the bundle's Python for one script, without the program around it."""

from sigma_app.worker import start

if __name__ == "__main__":
    start()
