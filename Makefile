.PHONY: test quick lint docs demo

test:  ## the whole test suite, about six minutes on two cores
	pytest

quick:  ## its quick subset, under two minutes
	pytest -m "not slow"

lint:  ## style, types and the import contract
	ruff check .
	ruff format --check .
	mypy
	lint-imports

docs:  ## the documentation, served at http://127.0.0.1:8000
	mkdocs serve --strict

demo:  ## track points in the bundled clip
	chrono-features demo
