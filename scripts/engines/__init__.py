"""What carries an algorithm out on the node."""
