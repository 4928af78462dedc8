"""Any classifier as an attack needs it: built of operations that can be differentiated twice."""
