from worldkv.cli import main

main()
