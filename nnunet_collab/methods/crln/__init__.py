"""CRLN, with the parts that only this method uses."""
