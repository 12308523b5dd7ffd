"""All of triton as source, with the NVIDIA backend only, on Linux and on Windows.

In the place of the hook that comes with PyInstaller: that one asks for the distribution `triton`, does not find
`triton-windows`, and then collects no backend; it also leaves out the TinyCC that triton-windows needs.
"""

from PyInstaller.utils.hooks import collect_data_files, collect_dynamic_libs, collect_submodules

from bundle import plan


def wanted(name):
    return not any(name == unused or name.startswith(f"{unused}.") for unused in plan.UNUSED_MODULES)


hiddenimports = collect_submodules("triton", filter=wanted)
datas = collect_data_files("triton.backends", excludes=["amd/**"])
datas += collect_data_files("triton", includes=["runtime/tcc/**"])
binaries = collect_dynamic_libs("triton")
