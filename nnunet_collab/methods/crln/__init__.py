"""CRLN, with the parts only it uses."""
