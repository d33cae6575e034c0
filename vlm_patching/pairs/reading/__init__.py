"""The files of datasets, row by row: nothing is read into memory whole, and every error names the file and the line."""
