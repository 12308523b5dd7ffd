@echo off
rem Builds dist\sigma; all logic is in packaging\build.py. PYTHON names the Python to use. Arguments go through.
setlocal
cd /d "%~dp0"
if exist packaging\build.py goto python
echo error: the folder of this file cannot be worked in; copy the project to a drive with a letter
exit /b 1
:python
if defined PYTHON goto run
for %%P in (py.exe python.exe) do if not defined PYTHON if not "%%~$PATH:P"=="" set "PYTHON=%%~$PATH:P"
if defined PYTHON goto run
echo error: no Python found; install Python 3.11 or newer, or set PYTHON to the path of its python.exe
exit /b 3
:run
"%PYTHON%" packaging\build.py %*
exit /b %ERRORLEVEL%
