"""FastWARC imports its compiled part by name, which PyInstaller does not see."""

hiddenimports = ["fastwarc._fastwarc"]
