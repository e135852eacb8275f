{{/* Labels of every object. culvertctl finds what it has installed by the first. */}}
{{- define "culvert.labels" -}}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}

{{- define "culvert.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "culvert.pull" -}}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end -}}

{{/* A token that only the CA accepts, and the roots by which the CA is known. */}}
{{- define "culvert.identityVolumes" -}}
- name: istio-token
  projected:
    sources:
      - serviceAccountToken:
          audience: istio-ca
          expirationSeconds: 43200
          path: istio-token
- name: istio-ca
  projected:
    sources:
      # Written by the controller, which may come after the agents.
      - configMap:
          name: istio-ca-root-cert
          optional: true
          items:
            - key: root-cert.pem
              path: root-cert.pem
      - configMap:
          name: istio-ca-crl
          optional: true
          items:
            - key: ca-crl.pem
              path: crl/ca-crl.pem
{{- end -}}
