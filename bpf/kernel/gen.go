package kernel

//go:generate sh -c "clang-14 --target=x86_64-linux-gnu -c -o subject.o asm/subject_amd64.S && llvm-objcopy-14 -O binary -j .text subject.o subject_amd64.bin && rm subject.o"
//go:generate sh -c "clang-14 --target=aarch64-linux-gnu -c -o subject.o asm/subject_arm64.S && llvm-objcopy-14 -O binary -j .text subject.o subject_arm64.bin && rm subject.o"
