"""The model of languages lies in the package as a data file."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("py3langid")
