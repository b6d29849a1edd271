"""Any step of a run, done again: training is a function of config, data, seed and step."""
