module example.com/program

go 1.26.0

require gvisor.dev/gvisor v0.0.0

replace gvisor.dev/gvisor => ../gvisor
