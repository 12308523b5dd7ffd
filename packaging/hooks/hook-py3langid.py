"""py3langid reads its model from a file beside its code."""

from PyInstaller.utils.hooks import collect_data_files

datas = collect_data_files("py3langid")
