"""Parts of the lab screens: plots of block characters, one view a file. Numbers come from monitoring."""
