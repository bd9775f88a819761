module example.com/losseval

go 1.18
