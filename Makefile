# Each target is one line that also works typed by hand, on Windows too: python packaging/make.py test
# Arguments go through: make run ARGS='--steps 5'

ifeq ($(OS),Windows_NT)
PYTHON ?= python
else
PYTHON ?= python3
endif

.PHONY: run test test-slow test-gpu check bench exe

run test test-slow test-gpu check bench exe:
	@$(PYTHON) packaging/make.py $@ $(ARGS)
