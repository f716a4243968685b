python3 - <<'E'
import os, struct, tarfile, io
open('x/cap','w').write('c'); os.chmod('x/cap',0o755)
cap=struct.pack('<IIIII', 0x02000001, 1<<10, 0, 0, 0)
os.setxattr('x/cap','security.capability',cap)
os.setxattr('x/plain','user.note',b'hello')
t=tarfile.open('caps.tar','w',format=tarfile.PAX_FORMAT)
e=tarfile.TarInfo('bin'); e.size=1; e.mode=0o755; e.pax_headers={'SCHILY.xattr.security.capability':cap.decode('latin-1') if False else cap.decode('utf-8','surrogateescape'), 'SCHILY.xattr.user.note':'n'}
t.addfile(e, io.BytesIO(b'b')); t.close()
E
