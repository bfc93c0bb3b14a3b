"""One file of tests for each Python module, under the same name. Nothing here needs KVM's cooperation."""
